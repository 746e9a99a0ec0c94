"""What keeps samix from working on this machine: `samix doctor`."""
