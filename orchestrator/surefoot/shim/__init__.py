"""The small process that starts a command, watches it, and writes down how it ended.

It stands alone (standard library only, none of Surefoot's other modules), runs in an isolated interpreter
(`python -I -S`), and outlives whoever started it: supervisor, engine, terminal.
"""
