"""What every run needs: typed config, process group, engine, checkpoint store, metrics."""
