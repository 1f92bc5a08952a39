"""What safeadmin, the daemon of a server, may be asked.

Three modules and not one: a command needs a few of these classes, and making all of them costs it as much time as the
rest of its own code.
"""
