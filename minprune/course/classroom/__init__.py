"""For lecturers: the chapters without their solutions (student.py), and points for a filled-in one (grade.py)."""
