package peoplewire

import "time"

// PKI is the authority that issues certificates beside Kubernetes. On PathPKI:
//
//	GET                               -> PKI; 404 when there is none
//	POST /init PKIInit                -> PKI
//	GET  /certificates                -> []PKICertificate without PEM, the newest first
//	GET  /certificates/SERIAL         -> PKICertificate
//	POST /certificates PKIRequest     -> PKICertificate
//	POST /certificates/SERIAL/revoke PKIRevoke -> PKICertificate
//	GET  /crl                         -> PKIList
type PKI struct {
	Name string `json:"name"`
	// Certificate of the authority, PEM, and its end.
	Certificate string    `json:"certificate"`
	Until       time.Time `json:"until"`
	// Domains and Networks are all that it may sign for; none of both: it may sign for all.
	Domains  []string `json:"domains,omitempty"`
	Networks []string `json:"networks,omitempty"`
	// URL stands in certificates: where the list of revoked ones and the responder are. Empty: it does not.
	URL string `json:"url,omitempty"`
	// Server is the certificate, PEM, by which the server's port for machines is verified.
	Server string `json:"server,omitempty"`
	// Issued counts all certificates that are remembered.
	Issued int `json:"issued"`
}

// PKIInit makes the authority.
type PKIInit struct {
	Name     string   `json:"name,omitempty"`
	Domains  []string `json:"domains,omitempty"`
	Networks []string `json:"networks,omitempty"`
	// URL as in PKI; empty: the server's address and port for machines, PKINoURL: none.
	URL string `json:"url,omitempty"`
}

// PKINoURL asks for certificates that do not say where revoked ones are listed.
const PKINoURL = "none"

// PKIRequest asks for a certificate.
type PKIRequest struct {
	// CSR is a PKCS #10 request, PEM.
	CSR string `json:"csr"`
	// Profile is server, client or peer; empty: server.
	Profile string `json:"profile,omitempty"`
	// TTL in seconds; 0: the server's default, 90 days.
	TTL int64 `json:"ttl,omitempty"`
	// Hosts and CommonName stand in the place of the request's own, where they are not empty.
	Hosts      []string `json:"hosts,omitempty"`
	CommonName string   `json:"commonName,omitempty"`
}

// PKIRevoke takes a certificate back.
type PKIRevoke struct {
	// Reason by RFC 5280: unspecified, keyCompromise, affiliationChanged, superseded, cessationOfOperation or privilegeWithdrawn.
	Reason string `json:"reason,omitempty"`
}

// PKICertificate is a certificate that was issued.
type PKICertificate struct {
	// Serial in hexadecimal.
	Serial     string    `json:"serial"`
	Profile    string    `json:"profile"`
	CommonName string    `json:"commonName,omitempty"`
	Names      []string  `json:"names,omitempty"`
	By         string    `json:"by"`
	IssuedAt   time.Time `json:"issuedAt"`
	Until      time.Time `json:"until"`
	// RevokedAt is when it was taken back; zero: it was not.
	RevokedAt time.Time `json:"revokedAt,omitzero"`
	RevokedBy string    `json:"revokedBy,omitempty"`
	Reason    string    `json:"reason,omitempty"`
	// State is valid, ended or revoked.
	State string `json:"state"`
	// Certificate, PEM.
	Certificate string `json:"certificate,omitempty"`
}

// What PKICertificate.State may be.
const (
	PKIValid   = "valid"
	PKIEnded   = "ended"
	PKIRevoked = "revoked"
)

// PKIList is the list of revoked certificates.
type PKIList struct {
	// CRL is PEM.
	CRL string `json:"crl"`
}
