"""Ray: connection, resources, pools of workers, tasks, worker failures and stalls."""
