"""Curation: from films to the scenes worth training a text-to-video model on."""
