"""How bytes reach a disk or a bucket, and how a folder of them becomes a finished output."""
