"""The main job: processes review Python code; one is killed at work, and the log proves that nothing was lost."""
