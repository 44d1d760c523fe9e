{{/* A table of TOML: scalars as JSON writes them, which TOML reads alike. */}}
{{- define "outrider.table" -}}
{{- range $key, $value := . }}
{{- if not (kindIs "invalid" $value) }}
{{ $key }} = {{ toJson $value }}
{{- end }}
{{- end }}
{{- end }}

{{/* cell.toml: the values, and what follows from them. */}}
{{- define "outrider.cell" -}}
{{- $cell := .Values.cell -}}
{{- $ranks := int $cell.target.tensor_parallel -}}
{{- $ray := dict "address" (printf "%s-head-svc:6379" (include "outrider.name" .)) "autoscaled" .Values.autoscaling.enabled -}}
{{- $target := dict "threads" (max 1 (div .Values.target.cpu $ranks)) -}}
{{- $metrics := ternary (dict "metrics_port" 9464) dict .Values.metrics.enabled }}
cache_dir = "/cache"
{{- if eq (toJson $cell.drafters) "[]" }}
drafters = []
{{- end }}

[ray]
{{- include "outrider.table" (merge $ray $cell.ray) }}

[scheduler]
{{- include "outrider.table" (merge (dict "listen" "0.0.0.0:50051") $metrics ($cell.scheduler | default dict)) }}

[target]
{{- include "outrider.table" (merge (dict) $cell.target $target) }}
{{- with $cell.restarts }}

[restarts]
{{- include "outrider.table" . }}
{{- end }}
{{- with $.Values.tls }}
{{- if .secretName }}

[tls]
certificate = "/etc/outrider-tls/tls.crt"
key = "/etc/outrider-tls/tls.key"
ca = "/etc/outrider-tls/ca.crt"
name = {{ toJson .name }}
require_client_certificate = {{ .requireClientCertificate }}
{{- end }}
{{- end }}
{{- if $.Values.auth.secretName }}

[auth]
tokens_file = "/etc/outrider-auth/tokens.toml"
{{- end }}
{{- with $cell.autoscale }}

[autoscale]
{{- include "outrider.table" . }}
{{- end }}
{{- range $cell.drafters }}
{{- $threads := ternary (max 1 (div $.Values.draft.cpu $.Values.draft.slots)) 1 (has .kind (list "model" "universal")) }}

[[drafters]]
{{- include "outrider.table" (merge (dict) . (dict "threads" $threads)) }}
{{- end }}
{{- end }}
