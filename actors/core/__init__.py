"""What every stage needs, with no knowledge of films: storage, child processes, stages."""
