{{/* Labels of everything. */}}
{{- define "leno.labels" -}}
app.kubernetes.io/name: leno
app.kubernetes.io/instance: {{ .Release.Name }}
app.kubernetes.io/version: {{ .Chart.AppVersion | quote }}
app.kubernetes.io/managed-by: {{ .Release.Service }}
app.kubernetes.io/part-of: leno
helm.sh/chart: {{ printf "%s-%s" .Chart.Name .Chart.Version | quote }}
{{- end }}

{{/* What the control plane's Pods are known by. */}}
{{- define "leno.selector" -}}
app.kubernetes.io/name: leno
app.kubernetes.io/component: control-plane
{{- end }}

{{/* An image: include "leno.image" (list . "leno-proxy" .Values.image.digests.lenoProxy) */}}
{{- define "leno.image" -}}
{{- $root := index . 0 -}}
{{- $repository := printf "%s/%s" $root.Values.image.registry (index . 1) -}}
{{- with index . 2 -}}
{{ $repository }}@{{ . }}
{{- else -}}
{{ $repository }}:{{ $root.Values.image.tag | default $root.Chart.AppVersion }}
{{- end -}}
{{- end }}

{{/* What injection is told; see control-plane/src/webhook/settings.rs. */}}
{{- define "leno.injection" -}}
controlPlane: {{ printf "leno.%s.svc.%s:4190" .Release.Namespace .Values.clusterDomain }}
namespace: {{ .Release.Namespace }}
proxy:
  image: {{ include "leno.image" (list . "leno-proxy" .Values.image.digests.lenoProxy) }}
  imagePullPolicy: {{ .Values.image.pullPolicy | quote }}
  uid: {{ int64 .Values.proxy.uid }}
  resources: {{- toYaml .Values.proxy.resources | nindent 4 }}
  workers: {{ .Values.proxy.workers | toString | quote }}
  log: {{ .Values.proxy.log | quote }}
  logFormat: {{ .Values.proxy.logFormat | quote }}
  accessLog: {{ .Values.proxy.accessLog | quote }}
  metrics: {{ .Values.proxy.metrics }}
  env: {{- toYaml .Values.proxy.env | nindent 4 }}
redirect:
  mode: {{ .Values.redirect.mode }}
  image: {{ include "leno.image" (list . "leno-redirect" .Values.image.digests.lenoRedirect) }}
  skipInboundPorts: {{- toYaml .Values.redirect.skipInboundPorts | nindent 4 }}
  skipOutboundPorts: {{- toYaml .Values.redirect.skipOutboundPorts | nindent 4 }}
  skipNetworks: {{- toYaml .Values.redirect.skipNetworks | nindent 4 }}
{{- end }}

{{/* Namespaces that no webhook is asked about. */}}
{{- define "leno.excludedNamespaces" -}}
- key: kubernetes.io/metadata.name
  operator: NotIn
  values: [{{ .Release.Namespace }}, kube-system, kube-public, kube-node-lease]
{{- end }}
