"""Ratios of this project's code to plain code and to public peers, measured in one process."""
