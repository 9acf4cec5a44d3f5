"""What pipelines of several capabilities need: training, metrics, Ray Data."""
