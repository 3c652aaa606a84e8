"""Work on a Ray cluster: connection, resources, worker pools, tasks, failures and stalls."""
