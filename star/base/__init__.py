"""What everything stands on: errors, files, randomness, the device, settings; nothing of the field."""
