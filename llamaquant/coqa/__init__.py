"""CoQA in pure Python: prompt layout (prompt.py), official scores (score.py), reading the data (data.py)."""
