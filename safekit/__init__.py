"""What every SafeKit process shares: paths, messages, the bus, the resource file, the frame of a process."""

__version__ = "7.4.0"
