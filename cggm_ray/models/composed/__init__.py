"""The network `composed`: an encoder by name for each modality, a fusion by name, and one linear head."""
