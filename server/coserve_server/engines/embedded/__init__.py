"""The common part of the engines that run members in this process: lanes, loading, replacing versions."""
