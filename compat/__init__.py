"""Evidence that is not part of the installed package: the benchmark, and comparisons with other stores."""
