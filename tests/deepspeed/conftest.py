"""The ranks' module is imported by processes of their own: deepspeed changes the process that imports it."""

collect_ignore = ["ranks.py"]
