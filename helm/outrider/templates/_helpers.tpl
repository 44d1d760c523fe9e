{{/* The name of every object, and of the RayCluster: the release's. */}}
{{- define "outrider.name" -}}
{{- if contains "outrider" .Release.Name }}{{ .Release.Name }}{{ else }}{{ .Release.Name }}-outrider{{ end -}}
{{- end }}

{{/* Of pods. No version in them: a new chart that makes the same pods is to restart none. */}}
{{- define "outrider.podLabels" -}}
app.kubernetes.io/name: outrider
app.kubernetes.io/instance: {{ .Release.Name }}
{{- end }}

{{- define "outrider.labels" -}}
{{ include "outrider.podLabels" . }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
helm.sh/chart: {{ .Chart.Name }}-{{ .Chart.Version }}
{{- end }}

{{- define "outrider.image" -}}
{{- with .Values.image -}}
{{- if .digest }}{{ .repository }}@{{ .digest }}{{ else }}{{ .repository }}:{{ .tag | default $.Chart.AppVersion }}{{ end -}}
{{- end -}}
{{- end }}

{{/* Pods of this cluster, as KubeRay labels them. Call with (list $ "group"), or with (list $) for all. */}}
{{- define "outrider.pods" -}}
ray.io/cluster: {{ include "outrider.name" (first .) }}
{{- with rest . }}
ray.io/group: {{ first . }}
{{- end }}
{{- end }}

{{/* What every container of ours may do: nothing but run. */}}
{{- define "outrider.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
capabilities: {drop: [ALL]}
{{- end }}

{{- define "outrider.podSecurity" -}}
runAsNonRoot: true
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{/* How many target groups there are at least and at most, as cluster/config.py reads them. */}}
{{- define "outrider.minGroups" -}}
{{- with .Values.cell.target }}{{ .min_groups | default .groups | default 1 }}{{ end -}}
{{- end }}

{{- define "outrider.maxGroups" -}}
{{- with .Values.cell.target }}{{ .max_groups | default .groups | default 1 }}{{ end -}}
{{- end }}

{{/* How many drafters there may be; cluster/default_model.py and cluster/config.py make some where none is named. */}}
{{- define "outrider.numDrafters" -}}
{{- $count := 0 }}
{{- range .Values.cell.drafters }}{{ $count = add $count (int (.max_workers | default 1)) }}{{ end }}
{{- if kindIs "slice" .Values.cell.drafters }}{{ $count }}{{ else if .Values.cell.target.model }}1{{ else }}2{{ end -}}
{{- end }}

{{- define "outrider.numGpuDrafters" -}}
{{- $count := 0 }}
{{- range .Values.cell.drafters }}{{ if eq (.device | default "cpu") "cuda" }}{{ $count = add $count (int (.max_workers | default 1)) }}{{ end }}{{ end }}
{{- $count -}}
{{- end }}

{{- define "outrider.redisAddress" -}}
{{- .Values.redis.address | default (printf "%s-redis:6379" (include "outrider.name" .)) -}}
{{- end }}

{{/* Seconds that a pod has between SIGTERM and SIGKILL: what the drain takes, and some to end. */}}
{{- define "outrider.gracePeriod" -}}
{{- .Values.cell.ray.drain_s | ceil | int | add 20 -}}
{{- end }}
