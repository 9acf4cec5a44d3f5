"""The decode pass: what it has to do, in which order, and where."""
