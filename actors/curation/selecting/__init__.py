"""Rules, filters and near-duplicates: which scenes are kept."""
