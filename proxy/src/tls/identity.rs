//! Gets and renews the workload's certificate: key and CSR here, `Identity.Certify` there, renewal at
//! 2/3 of life with jitter, backoff while the control plane is away. The key never leaves this process.
