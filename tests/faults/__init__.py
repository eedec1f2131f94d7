"""What breaks on a cluster while real work runs on it: each run ends in the artifacts of one that nothing disturbed."""
