"""Evaluation tasks, one file each; the folder is walked."""
