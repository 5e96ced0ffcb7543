package identify

import "coldrack.dev/api/v1alpha1"

// Normalize returns identifiers in the form in which Index compares them: equal ones are equal, and those that
// say nothing, because vendors put them on many machines, are empty. Positions are kept.
func Normalize(ids v1alpha1.Identifiers) v1alpha1.Identifiers {
	normal := v1alpha1.Identifiers{
		UUID: normalUUID(ids.UUID), Serial: normalSerial(ids.Serial), BMCMAC: ownMAC(ids.BMCMAC),
	}
	for _, mac := range ids.MACs {
		normal.MACs = append(normal.MACs, ownMAC(mac))
	}
	return normal
}
