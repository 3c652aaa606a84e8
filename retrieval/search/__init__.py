"""From the candidates of many shards to the ranked matches of each query."""
