"""Generated from protos/outrider/v1 by `make protos`; do not edit."""
