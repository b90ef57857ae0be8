"""The index of no item. Nothing is imported here, so that the runtime may read it."""

PAD = -1
