"""From a service that runs on one server to a mirror on two: what has to be known, what would be done, the doing."""
