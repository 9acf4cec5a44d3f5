"""What is chained: functions from Dataset to Dataset, and training runs."""
