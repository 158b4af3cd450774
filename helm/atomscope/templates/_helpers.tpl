{{- define "atomscope.name" -}}
{{- default .Chart.Name .Values.nameOverride | trunc 50 | trimSuffix "-" }}
{{- end }}

{{- define "atomscope.fullname" -}}
{{- if .Values.fullnameOverride }}
{{- .Values.fullnameOverride | trunc 50 | trimSuffix "-" }}
{{- else if contains (include "atomscope.name" .) .Release.Name }}
{{- .Release.Name | trunc 50 | trimSuffix "-" }}
{{- else }}
{{- printf "%s-%s" .Release.Name (include "atomscope.name" .) | trunc 50 | trimSuffix "-" }}
{{- end }}
{{- end }}

{{/* Labels of a part: a list of the root and the part's name. */}}
{{- define "atomscope.selector" -}}
{{- $root := index . 0 -}}
app.kubernetes.io/name: {{ include "atomscope.name" $root }}
app.kubernetes.io/instance: {{ $root.Release.Name }}
app.kubernetes.io/component: {{ index . 1 }}
{{- end }}

{{- define "atomscope.labels" -}}
{{- $root := index . 0 -}}
{{ include "atomscope.selector" . }}
app.kubernetes.io/version: {{ $root.Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ $root.Release.Service }}
helm.sh/chart: {{ printf "%s-%s" $root.Chart.Name $root.Chart.Version | replace "+" "_" }}
{{- end }}

{{- define "atomscope.image" -}}
{{- $root := index . 0 -}}
{{- $image := index . 1 -}}
{{- if $image.digest -}}
{{ $image.repository }}@{{ $image.digest }}
{{- else -}}
{{ $image.repository }}:{{ $image.tag | default $root.Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* Names of the secrets, and a refusal where one is neither given nor named. */}}
{{- define "atomscope.databaseSecret" -}}
{{- if .Values.database.existingSecret }}{{ .Values.database.existingSecret }}
{{- else if .Values.database.url }}{{ include "atomscope.fullname" . }}-database
{{- else }}{{ fail "give database.url or database.existingSecret" }}{{ end }}
{{- end }}

{{- define "atomscope.brokerSecret" -}}
{{- if .Values.broker.existingSecret }}{{ .Values.broker.existingSecret }}
{{- else if .Values.broker.url }}{{ include "atomscope.fullname" . }}-broker
{{- else }}{{ fail "give broker.url or broker.existingSecret" }}{{ end }}
{{- end }}

{{- define "atomscope.serverSecret" -}}
{{- if .Values.server.existingSecret }}{{ .Values.server.existingSecret }}
{{- else if .Values.server.secret }}{{ include "atomscope.fullname" . }}-server
{{- else }}{{ fail "give server.secret or server.existingSecret" }}{{ end }}
{{- end }}

{{/* Empty where pods have an identity of their own. */}}
{{- define "atomscope.storeSecret" -}}
{{- if .Values.store.existingSecret }}{{ .Values.store.existingSecret }}
{{- else if .Values.store.accessKeyId }}{{ include "atomscope.fullname" . }}-store{{ end }}
{{- end }}

{{/* Empty where the endpoint for labels takes no key, or there is none. */}}
{{- define "atomscope.labelSecret" -}}
{{- $labels := .Values.worker.labels -}}
{{- if $labels.existingSecret }}{{ $labels.existingSecret }}
{{- else if $labels.key }}{{ include "atomscope.fullname" . }}-labels{{ end }}
{{- end }}

{{- define "atomscope.serviceAccount" -}}
{{- .Values.serviceAccount.name | default (ternary (include "atomscope.fullname" .) "default" .Values.serviceAccount.create) }}
{{- end }}

{{- define "atomscope.workerServiceAccount" -}}
{{- .Values.serviceAccount.workerName | default (ternary (printf "%s-worker" (include "atomscope.fullname" .)) "default" .Values.serviceAccount.create) }}
{{- end }}

{{/* Where the store is: a list of the root and the name of a secret with its credentials, or "". */}}
{{- define "atomscope.storeEnv" -}}
{{- $store := (index . 0).Values.store -}}
{{- $secret := index . 1 -}}
- name: ATOMSCOPE_STORE
  value: {{ $store.uri | quote }}
{{- with $store.endpointUrl }}
- name: ATOMSCOPE_S3_ENDPOINT_URL
  value: {{ . | quote }}
{{- end }}
{{- with $store.region }}
- name: ATOMSCOPE_S3_REGION
  value: {{ . | quote }}
{{- end }}
- name: ATOMSCOPE_S3_ADDRESSING_STYLE
  value: {{ $store.addressingStyle }}
- name: ATOMSCOPE_S3_CHECKSUMS
  value: {{ $store.checksums }}
{{- if $secret }}
- name: AWS_ACCESS_KEY_ID
  valueFrom:
    secretKeyRef: {name: {{ $secret }}, key: access-key-id}
- name: AWS_SECRET_ACCESS_KEY
  valueFrom:
    secretKeyRef: {name: {{ $secret }}, key: secret-access-key}
{{- end }}
{{- end }}

{{/* Environment of the API and the control worker, secrets by reference. */}}
{{- define "atomscope.serviceEnv" -}}
- name: ATOMSCOPE_DATABASE_URL
  valueFrom:
    secretKeyRef: {name: {{ include "atomscope.databaseSecret" . }}, key: {{ .Values.database.existingSecret | empty | ternary "url" .Values.database.existingSecretKey }}}
- name: ATOMSCOPE_BROKER_URL
  valueFrom:
    secretKeyRef: {name: {{ include "atomscope.brokerSecret" . }}, key: {{ .Values.broker.existingSecret | empty | ternary "url" .Values.broker.existingSecretKey }}}
- name: ATOMSCOPE_SECRET_FILE
  value: /etc/atomscope/secret
{{ include "atomscope.storeEnv" (list . (include "atomscope.storeSecret" .)) }}
{{- end }}

{{- define "atomscope.podSecurity" -}}
runAsNonRoot: true
runAsUser: 10001
runAsGroup: 10001
fsGroup: 10001
seccompProfile: {type: RuntimeDefault}
{{- end }}

{{- define "atomscope.containerSecurity" -}}
allowPrivilegeEscalation: false
readOnlyRootFilesystem: true
runAsNonRoot: true
capabilities: {drop: [ALL]}
{{- end }}

{{/* Processes without a port. Remote control of Celery is off, so they are asked through the broker and the
     kernel. A worker that hangs is found by its lease, not by a probe: restarting it would free nothing sooner. */}}
{{- define "atomscope.processProbes" -}}
startupProbe:
  exec: &broker
    command: [python, -c, "import os, redis; redis.Redis.from_url(os.environ['ATOMSCOPE_BROKER_URL'], socket_timeout=5).ping()"]
  periodSeconds: 5
  timeoutSeconds: 10
  failureThreshold: 60
readinessProbe:
  exec: *broker
  periodSeconds: 30
  timeoutSeconds: 10
  failureThreshold: 4
livenessProbe:
  exec:
    command: [sh, -c, "! grep -qE '^State:\\s+[TZX]' /proc/1/status"]
  periodSeconds: 30
  timeoutSeconds: 5
  failureThreshold: 4
{{- end }}

{{- define "atomscope.placement" -}}
{{- with .nodeSelector }}
nodeSelector: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .tolerations }}
tolerations: {{- toYaml . | nindent 2 }}
{{- end }}
{{- with .affinity }}
affinity: {{- toYaml . | nindent 2 }}
{{- end }}
{{- end }}
