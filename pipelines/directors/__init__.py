"""Directors: whose film a screenshot is from."""
