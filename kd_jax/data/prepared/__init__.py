"""Data sets that are prepared once, as shards on disk, for data larger than memory."""
