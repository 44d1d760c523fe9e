"""The conformance suite, `outriderd verify-lossless`: what a deployment promises of its answers, tried from outside."""
