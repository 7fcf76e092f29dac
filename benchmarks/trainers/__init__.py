"""transformers' own classes on the data of a config: one file per kind of task, prepared as its example scripts do."""
