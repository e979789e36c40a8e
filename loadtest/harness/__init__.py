"""The parts of loadtest/run: installing, processes, targets, suites, measuring, reporting."""
