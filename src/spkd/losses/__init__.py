"""Losses as modules: what a term needs of the teacher, what it asks of the student, and their sum."""
