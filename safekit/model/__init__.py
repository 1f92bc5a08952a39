"""userconfig.xml and cluster.xml as frozen dataclasses; ports that follow from a module's id."""
