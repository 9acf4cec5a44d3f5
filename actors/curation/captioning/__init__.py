"""Captions of scenes from vision-language models: what is sent, which replies count, and who answers."""
