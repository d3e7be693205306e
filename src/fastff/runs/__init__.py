"""What all long commands share: settings, folders that are claimed and resumed, interrupts, files, data, plots."""
