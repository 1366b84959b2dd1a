//! Kubernetes objects as YAML: a registry's place and its images enter, documents for `kubectl apply` leave. Pure.

use crate::host::trust::kubernetes::hosting;
use crate::host::trust::text::quoted;
use crate::oci::Host;

/// Name of every object, and the label by which the Service finds what serves.
pub const NAME: &str = "localregistry";
/// The registry's port in its container or machine: the one that the guest has by default.
pub const PORT: u16 = 5000;
/// User and group of the server: nobody's, as images without users have it.
pub const USER: u32 = 65532;
/// Where the images lie in the server's container.
pub const IMAGES: &str = "/images";
/// Where the Secret is mounted.
const CA: &str = "/ca";
/// The Secret with the CA that signs every replica's certificate, of the type `kubernetes.io/tls`.
pub const SECRET: &str = "localregistry-ca";

/// Where the kernel and its initramfs lie in their image.
pub const KERNEL: &str = "/boot/vmlinux";
/// The initramfs.
pub const INITRAMFS: &str = "/boot/initramfs.cpio";
/// Memory of a machine, as `run` gives it by default.
const MEMORY: &str = "256Mi";

/// Where a registry is to be in a cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The namespace of all but the ConfigMap.
    pub namespace: String,
    /// Where nodes reach it, host and port. Never empty; the first is told to tools.
    pub hosts: Vec<Host>,
    /// The port that every node forwards to it.
    pub node_port: u16,
}

impl Place {
    /// Where containers reach it.
    pub fn inside(&self) -> String {
        format!("{NAME}.{}.svc:{PORT}", self.namespace)
    }

    /// The names and addresses that its certificate is for, each once.
    fn names(&self) -> Vec<String> {
        let service = format!("{NAME}.{}", self.namespace);
        let mut names: Vec<String> =
            vec![NAME.to_owned(), service.clone(), format!("{service}.svc"), format!("{service}.svc.cluster.local")];
        for host in &self.hosts {
            let name = host.name().trim_matches(['[', ']']);
            if names.iter().all(|known| known != name) {
                names.push(name.to_owned());
            }
        }
        names
    }

    fn node_host(&self) -> &str {
        self.hosts.first().map(Host::as_str).unwrap_or_default()
    }
}

/// The server, twice, with its Service and the ConfigMap.
pub fn kubernetes(place: &Place, server: &str) -> String {
    let namespace = quoted(&place.namespace);
    let names: Vec<String> = place.names().iter().map(|name| quoted(name)).collect();
    let names: String = names.iter().map(|name| format!("            - --san\n            - {name}\n")).collect();
    let deployment = format!(
        r#"# Needs the Secret {SECRET}, the CA that signs every replica's certificate:
#     kubectl create secret tls {SECRET} --namespace {plain} --cert ca.crt --key ca.key
apiVersion: apps/v1
kind: Deployment
metadata:
  name: {NAME}
  namespace: {namespace}
  labels:
    app.kubernetes.io/name: {NAME}
spec:
  replicas: 2
  selector:
    matchLabels:
      app.kubernetes.io/name: {NAME}
  strategy:
    type: RollingUpdate
    rollingUpdate:
      maxUnavailable: 0
      maxSurge: 1
  template:
    metadata:
      labels:
        app.kubernetes.io/name: {NAME}
    spec:
      automountServiceAccountToken: false
      enableServiceLinks: false
      # The server gives transfers 10 s to end.
      terminationGracePeriodSeconds: 30
      securityContext:
        runAsNonRoot: true
        runAsUser: {USER}
        runAsGroup: {USER}
        fsGroup: {USER}
        seccompProfile:
          type: RuntimeDefault
      topologySpreadConstraints:
        - maxSkew: 1
          topologyKey: kubernetes.io/hostname
          whenUnsatisfiable: ScheduleAnyway
          labelSelector:
            matchLabels:
              app.kubernetes.io/name: {NAME}
      containers:
        - name: {NAME}
          image: {image}
          imagePullPolicy: IfNotPresent
          args:
            - --listen
            - 0.0.0.0:{PORT}
            - --ca
            - {CA}/tls.crt
            - --key
            - {CA}/tls.key
{names}          ports:
            - name: registry
              containerPort: {PORT}
              protocol: TCP
          securityContext:
            allowPrivilegeEscalation: false
            privileged: false
            readOnlyRootFilesystem: true
            capabilities:
              drop:
                - ALL
          resources:
            requests:
              cpu: 50m
              memory: 64Mi
            limits:
              memory: 256Mi
          readinessProbe:
            httpGet:
              path: /healthz
              port: registry
              scheme: HTTPS
            periodSeconds: 5
          livenessProbe:
            httpGet:
              path: /healthz
              port: registry
              scheme: HTTPS
            periodSeconds: 20
            timeoutSeconds: 5
          volumeMounts:
            - name: ca
              mountPath: {CA}
              readOnly: true
      volumes:
        - name: ca
          secret:
            secretName: {SECRET}
            # 0440
            defaultMode: 288
"#,
        plain = place.namespace,
        image = quoted(server),
    );
    documents(&[deployment, service(place), config_map(place)])
}

/// The machine, with the same Service and ConfigMap.
pub fn kubevirt(place: &Place, disk: &str, boot: &str) -> String {
    let namespace = quoted(&place.namespace);
    // As QEMU's arguments of `run` have it, for the board that KubeVirt takes.
    let arguments = format!("console=ttyS0 panic=-1 loglevel=5 localregistry.names={}", place.names().join(","));
    let machine = format!(
        r#"# In place of the Deployment, not beside it. Its CA is made at each boot: the console's line `ready` has it, and so has /ca.crt.
apiVersion: kubevirt.io/v1
kind: VirtualMachine
metadata:
  name: {NAME}
  namespace: {namespace}
  labels:
    app.kubernetes.io/name: {NAME}
spec:
  runStrategy: Always
  template:
    metadata:
      labels:
        app.kubernetes.io/name: {NAME}
    spec:
      terminationGracePeriodSeconds: 30
      domain:
        machine:
          type: q35
        cpu:
          cores: 1
        memory:
          guest: {MEMORY}
        firmware:
          kernelBoot:
            kernelArgs: {arguments}
            container:
              image: {boot}
              imagePullPolicy: IfNotPresent
              kernelPath: {KERNEL}
              initrdPath: {INITRAMFS}
        devices:
          disks:
            - name: images
              serial: {NAME}
              disk:
                bus: virtio
          interfaces:
            - name: default
              model: virtio
              masquerade: {{}}
              ports:
                - name: registry
                  port: {PORT}
                  protocol: TCP
          rng: {{}}
      readinessProbe:
        httpGet:
          path: /healthz
          port: {PORT}
          scheme: HTTPS
        periodSeconds: 5
      livenessProbe:
        httpGet:
          path: /healthz
          port: {PORT}
          scheme: HTTPS
        initialDelaySeconds: 60
        periodSeconds: 20
        timeoutSeconds: 5
      networks:
        - name: default
          pod: {{}}
      volumes:
        - name: images
          containerDisk:
            image: {disk}
            imagePullPolicy: IfNotPresent
"#,
        arguments = quoted(&arguments),
        boot = quoted(boot),
        disk = quoted(disk),
    );
    documents(&[machine, service(place), config_map(place)])
}

fn service(place: &Place) -> String {
    format!(
        "apiVersion: v1\n\
         kind: Service\n\
         metadata:\n\
         \x20 name: {NAME}\n\
         \x20 namespace: {}\n\
         \x20 labels:\n\
         \x20   app.kubernetes.io/name: {NAME}\n\
         spec:\n\
         \x20 type: NodePort\n\
         \x20 selector:\n\
         \x20   app.kubernetes.io/name: {NAME}\n\
         \x20 ports:\n\
         \x20   - name: registry\n\
         \x20     protocol: TCP\n\
         \x20     port: {PORT}\n\
         \x20     targetPort: {PORT}\n\
         \x20     nodePort: {}\n",
        quoted(&place.namespace),
        place.node_port
    )
}

fn config_map(place: &Place) -> String {
    hosting(place.node_host(), &place.inside())
}

fn documents(documents: &[String]) -> String {
    documents.join("---\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_certificate_is_for_every_name_once() {
        let hosts = ["registry.test:30500", "[fd00::1]:30500", "localregistry:30500"].map(|host| host.parse().unwrap());
        let place = Place { namespace: "e2e".to_owned(), hosts: hosts.into(), node_port: 30500 };
        let expected = [
            "localregistry",
            "localregistry.e2e",
            "localregistry.e2e.svc",
            "localregistry.e2e.svc.cluster.local",
            "registry.test",
            "fd00::1",
        ];
        assert_eq!(place.names(), expected);
        assert_eq!((place.inside().as_str(), place.node_host()), ("localregistry.e2e.svc:5000", "registry.test:30500"));
    }
}
