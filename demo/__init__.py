"""The main job: a team of processes reviews Python code; one is killed at work, and the log proves that nothing is lost."""
