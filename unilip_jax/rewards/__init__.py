"""Rewards of sampled images: plug-ins by name, and the processes in which they run."""
