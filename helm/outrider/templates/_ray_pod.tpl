{{/*
The pod template of a Ray group. Call with a dict:
  root       $
  group      headgroup, scheduler, target or draft
  pool       the group's values
  gpus       of a pod
  isStaying  whether a node with it is better left alone by those who pack nodes
  script     what runs instead of `ray start --block`; optional
KubeRay adds: the init container that waits for the head, Ray's command line, its own environment and token.
*/}}
{{- define "outrider.rayPod" -}}
{{- $root := .root }}
{{- $pool := .pool -}}
metadata:
  labels:
    {{- include "outrider.podLabels" $root | nindent 4 }}
  {{- if or .isStaying .script }}
  annotations:
    {{- if .isStaying }}
    cluster-autoscaler.kubernetes.io/safe-to-evict: "false"
    karpenter.sh/do-not-disrupt: "true"
    {{- end }}
    {{- if .script }}
    ray.io/overwrite-container-cmd: "true"
    checksum/cell: {{ include "outrider.cell" $root | sha256sum }}
    {{- end }}
  {{- end }}
spec:
  {{- if $root.Values.autoscaling.enabled }}
  restartPolicy: Never  # Ray's autoscaler takes no other
  {{- end }}
  {{- if and (eq .group "headgroup") $root.Values.autoscaling.enabled }}
  automountServiceAccountToken: true  # of the account that KubeRay makes for the autoscaler
  {{- else }}
  serviceAccountName: {{ include "outrider.name" $root }}-worker
  automountServiceAccountToken: false
  {{- end }}
  terminationGracePeriodSeconds: {{ include "outrider.gracePeriod" $root }}
  securityContext:
    {{- include "outrider.podSecurity" $root | nindent 4 }}
  {{- with $root.Values.image.pullSecrets }}
  imagePullSecrets:
    {{- range . }}
    - name: {{ . }}
    {{- end }}
  {{- end }}
  {{- with $pool.priorityClassName }}
  priorityClassName: {{ . }}
  {{- end }}
  {{- with $pool.runtimeClassName }}
  runtimeClassName: {{ . }}
  {{- end }}
  {{- with $pool.nodeSelector }}
  nodeSelector: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- with $pool.tolerations }}
  tolerations: {{- toYaml . | nindent 4 }}
  {{- end }}
  {{- if has .group (list "scheduler" "draft") }}
  affinity:
    podAffinity:  # every pass crosses the network twice: in the target's zone if there is room
      preferredDuringSchedulingIgnoredDuringExecution:
        - weight: 100
          podAffinityTerm:
            topologyKey: topology.kubernetes.io/zone
            labelSelector:
              matchLabels: {{- include "outrider.pods" (list $root "target") | nindent 16 }}
  {{- end }}
  {{- with $pool.topologySpread }}
  topologySpreadConstraints:
    {{- range . }}
    - topologyKey: {{ .topologyKey }}
      maxSkew: {{ .maxSkew }}
      whenUnsatisfiable: {{ .whenUnsatisfiable }}
      labelSelector:
        matchLabels: {{- include "outrider.pods" (list $root "draft") | nindent 10 }}
    {{- end }}
  {{- end }}
  {{- if and (eq .group "target") (not $root.Values.cell.target.model) }}
  initContainers:
    - name: fetch-model
      {{- include "outrider.rayContainer" . | nindent 6 }}
      command: [outriderd, fetch]
  {{- end }}
  containers:
    - name: ray
      {{- include "outrider.rayContainer" . | nindent 6 }}
      {{- if .script }}
      command: [/bin/bash, -c]
      args:
        - {{ toJson .script }}
      ports:
        - {name: grpc, containerPort: 50051}
        {{- if $root.Values.metrics.enabled }}
        - {name: metrics, containerPort: 9464}
        {{- end }}
      readinessProbe:  # the cell's own word: a target is there
        {{- if $root.Values.tls.secretName }}
        exec: {command: [python, -m, cluster.probe, /etc/outrider/cell.toml]}  # Kubernetes' own gRPC probe knows no TLS
        periodSeconds: 10
        timeoutSeconds: 8
        {{- else }}
        grpc: {port: 50051}
        periodSeconds: 5
        timeoutSeconds: 3
        {{- end }}
      lifecycle:
        preStop:
          sleep: {seconds: 5}  # until no Service sends new clients here
      {{- else }}
      readinessProbe:
        {{- include "outrider.rayHealth" . | nindent 8 }}
        failureThreshold: 3
      {{- end }}
      livenessProbe:
        {{- include "outrider.rayHealth" . | nindent 8 }}
        initialDelaySeconds: 60
        failureThreshold: 24
  volumes:
    - {name: tmp, emptyDir: {}}
    - {name: cache, emptyDir: {sizeLimit: {{ $pool.cache | default "1Gi" }}}}
    - {name: shm, emptyDir: {medium: Memory, sizeLimit: {{ $pool.shm | default "256Mi" }}}}
    {{- if .script }}
    - {name: cell, configMap: {name: {{ include "outrider.name" $root }}}}
    {{- with $root.Values.auth.secretName }}
    - {name: auth, secret: {secretName: {{ . }}}}
    {{- end }}
    {{- end }}
    {{- if and $root.Values.tls.secretName (ne .group "headgroup") }}
    - {name: tls, secret: {secretName: {{ $root.Values.tls.secretName }}}}
    {{- end }}
    {{- if and $root.Values.models.claim (has .group (list "target" "draft")) }}
    - {name: models, persistentVolumeClaim: {claimName: {{ $root.Values.models.claim }}, readOnly: true}}
    {{- end }}
{{- end }}

{{/* What the Ray container and the one that fetches the model share. */}}
{{- define "outrider.rayContainer" -}}
{{- $root := .root }}
{{- $pool := .pool -}}
image: {{ include "outrider.image" $root }}
imagePullPolicy: {{ $root.Values.image.pullPolicy }}
securityContext:
  {{- include "outrider.containerSecurity" $root | nindent 2 }}
env:
  {{- include "outrider.rayEnv" . | nindent 2 }}
resources:
  requests:
    cpu: {{ $pool.cpu }}
    memory: {{ $pool.memory }}
    {{- if .gpus }}
    {{ $pool.gpuResource }}: {{ .gpus }}
    {{- end }}
  limits:  # not of CPU: a throttled thread keeps all others of its pass waiting
    memory: {{ $pool.memory }}
    {{- if .gpus }}
    {{ $pool.gpuResource }}: {{ .gpus }}
    {{- end }}
volumeMounts:
  - {name: tmp, mountPath: /tmp}
  - {name: cache, mountPath: /cache}
  - {name: shm, mountPath: /dev/shm}
  {{- if .script }}
  - {name: cell, mountPath: /etc/outrider, readOnly: true}
  {{- if $root.Values.auth.secretName }}
  - {name: auth, mountPath: /etc/outrider-auth, readOnly: true}
  {{- end }}
  {{- end }}
  {{- if and $root.Values.tls.secretName (ne .group "headgroup") }}
  - {name: tls, mountPath: /etc/outrider-tls, readOnly: true}
  {{- end }}
  {{- if and $root.Values.models.claim (has .group (list "target" "draft")) }}
  - {name: models, mountPath: /models, readOnly: true}
  {{- end }}
{{- end }}

{{/* Raylet and, on the head, the control plane: what KubeRay probes too. */}}
{{- define "outrider.rayHealth" -}}
httpGet: {path: /api/healthz, port: 52365}
periodSeconds: 5
timeoutSeconds: 5
{{- end }}

{{- define "outrider.rayEnv" -}}
{{- $root := .root -}}
- {name: HOME, value: /cache}
- {name: OUTRIDER_CACHE, value: /cache}
- {name: RAY_USAGE_STATS_ENABLED, value: "0"}
- {name: RAY_worker_niceness, value: "0"}  # Ray's default of 15 gives those who serve the lowest priority
- {name: RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO, value: "1"}  # who asked for no GPU sees none
{{- if eq .group "headgroup" }}
# A node that is gone is seen after 3 s, by default after 14.
- {name: RAY_health_check_initial_delay_ms, value: "0"}
- {name: RAY_health_check_period_ms, value: "1000"}
- {name: RAY_health_check_timeout_ms, value: "1000"}
- {name: RAY_health_check_failure_threshold, value: "3"}
{{- else }}
- {name: RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S, value: {{ $root.Values.cell.ray.drain_s | ceil | int | quote }}}
{{- end }}
{{- if and (eq .group "target") (gt (int .gpus) 1) }}
- {name: NCCL_DEBUG, value: {{ .pool.nccl.debug }}}
{{- with .pool.nccl.socketIfname }}
- {name: NCCL_SOCKET_IFNAME, value: {{ . | quote }}}
{{- end }}
{{- end }}
{{- if and $root.Values.models.hubTokenSecret (has .group (list "target" "draft")) }}
- name: HF_TOKEN
  valueFrom: {secretKeyRef: {name: {{ $root.Values.models.hubTokenSecret }}, key: token}}
{{- end }}
{{- range $name, $value := $root.Values.env }}
- {name: {{ $name }}, value: {{ $value | quote }}}
{{- end }}
{{- end }}
