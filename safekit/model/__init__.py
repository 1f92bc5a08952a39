"""Both configuration files, userconfig.xml and cluster.xml, as frozen dataclasses; checks; ports of a module's id."""
