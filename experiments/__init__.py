"""Questions asked of odenets and stability: scripts with files, command lines, seeds and plots."""
