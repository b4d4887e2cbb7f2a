"""What is wrong with a data folder, found in one pass, and what can be done about it."""
