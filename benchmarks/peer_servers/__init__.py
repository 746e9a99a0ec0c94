"""The other systems' servers and clients: scripts, each run by the Python of that system's own environment.

They import Python, numpy, their own system and the modules beside them; never this project.
"""
