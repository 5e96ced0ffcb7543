package httpboot

import "strings"

// ChainScript is what /boot.ipxe serves: iPXE's first script, the same for every machine. It has
// iPXE say what it knows of the machine and asks for that machine's own script.
//
// A server that does not answer is asked again for about a minute. Then iPXE ends, so that the firmware
// goes on with its boot order: an installed machine must start from its disk even when we are away.
func ChainScript() string {
	return `#!ipxe
echo Coldrack: asking what this machine boots
set attempt:int32 0
:ask
chain --replace --autofree ` + AskPath() + ` ||
inc attempt
iseq ${attempt} 15 && goto leave ||
echo Coldrack: no answer (attempt ${attempt} of 15), asking again in 4 seconds
sleep 4
goto ask
:leave
echo Coldrack: the boot server gives no answer, going on with the boot order of the firmware
sleep 2
exit 1
`
}

// AskPath is the path and query by which iPXE asks for the machine's own script, with what it knows of the machine.
//
// netX is the interface iPXE was booted from; it comes first. Settings that do not exist expand to
// nothing. SMBIOS strings go through iPXE's URI encoding because they may contain spaces and worse.
// MACs go with hyphens: iPXE takes whatever stands before the first colon of a URI for its scheme, even
// behind a question mark.
func AskPath() string {
	parameters := []string{"mac=${netX/mac:hexhyp}"}
	for _, nic := range []string{"net0", "net1", "net2", "net3", "net4", "net5", "net6", "net7"} {
		parameters = append(parameters, "mac=${"+nic+"/mac:hexhyp}")
	}
	parameters = append(parameters,
		"uuid=${uuid}",
		"serial=${serial:uristring}",
		"manufacturer=${manufacturer:uristring}",
		"product=${product:uristring}",
		"asset=${asset:uristring}",
		"arch=${buildarch}",
		"platform=${platform}",
		"ip=${netX/ip}",
	)
	return "/boot/ipxe?" + strings.Join(parameters, "&")
}
