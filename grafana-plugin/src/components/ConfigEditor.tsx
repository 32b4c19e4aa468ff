import React from 'react';
import { DataSourcePluginOptionsEditorProps } from '@grafana/data';
import { Field, FieldSet, Input, SecretInput, SecretTextArea, Switch, Text } from '@grafana/ui';
import { WaybillOptions, WaybillSecrets } from '../types';

type Props = DataSourcePluginOptionsEditorProps<WaybillOptions, WaybillSecrets>;

const WIDTH = 60;

/** The settings of a data source: where Waybill's HTTP side is, and how to be let in. */
export function ConfigEditor({ options, onOptionsChange }: Props) {
  const { jsonData, secureJsonFields, secureJsonData } = options;
  const set = (change: Partial<WaybillOptions>) =>
    onOptionsChange({ ...options, jsonData: { ...jsonData, ...change } });
  const setSecret = (name: keyof WaybillSecrets, value: string) =>
    onOptionsChange({ ...options, secureJsonData: { ...secureJsonData, [name]: value } });
  const resetSecret = (name: keyof WaybillSecrets) =>
    onOptionsChange({
      ...options,
      secureJsonFields: { ...secureJsonFields, [name]: false },
      secureJsonData: { ...secureJsonData, [name]: '' },
    });
  const pem = (name: keyof WaybillSecrets, label: string, kind: string) => (
    <Field label={label} htmlFor={`waybill-${name}`}>
      <SecretTextArea
        id={`waybill-${name}`}
        cols={WIDTH}
        rows={4}
        placeholder={`-----BEGIN ${kind}-----`}
        isConfigured={Boolean(secureJsonFields[name])}
        value={secureJsonData?.[name] ?? ''}
        onChange={(event) => setSecret(name, event.currentTarget.value)}
        onReset={() => resetSecret(name)}
      />
    </Field>
  );

  return (
    <>
      <FieldSet label="Connection">
        <Field
          label="URL"
          htmlFor="waybill-url"
          description="The address of Waybill's HTTP side (http.listen), as Grafana's server reaches it"
          required
        >
          <Input
            id="waybill-url"
            width={WIDTH}
            value={options.url}
            placeholder="http://127.0.0.1:8025"
            onChange={(event) => onOptionsChange({ ...options, url: event.currentTarget.value })}
          />
        </Field>
        <Field
          label="Token"
          htmlFor="waybill-token"
          description="One of Waybill's http.tokens_file, with the role viewer. Not needed on loopback without that file."
        >
          <SecretInput
            id="waybill-token"
            width={WIDTH}
            isConfigured={Boolean(secureJsonFields.token)}
            value={secureJsonData?.token ?? ''}
            placeholder="No token"
            onChange={(event) => setSecret('token', event.currentTarget.value)}
            onReset={() => resetSecret('token')}
          />
        </Field>
        <Field label="Timeout" htmlFor="waybill-timeout" description="Seconds that an answer may take">
          <Input
            id="waybill-timeout"
            type="number"
            min={1}
            width={12}
            value={jsonData.timeout ?? ''}
            placeholder="30"
            suffix="s"
            onChange={(event) => {
              const timeout = Number(event.currentTarget.value);
              set({ timeout: timeout > 0 ? timeout : undefined });
            }}
          />
        </Field>
      </FieldSet>
      <FieldSet label="TLS">
        <Field
          label="Own CA"
          htmlFor="waybill-tls-ca"
          description="Trust certificates of a CA that Grafana's system does not know"
        >
          <Switch
            id="waybill-tls-ca"
            value={jsonData.tlsAuthWithCACert ?? false}
            onChange={(event) => set({ tlsAuthWithCACert: event.currentTarget.checked })}
          />
        </Field>
        {jsonData.tlsAuthWithCACert && pem('tlsCACert', 'CA certificate', 'CERTIFICATE')}
        <Field label="Client certificate" htmlFor="waybill-tls-client" description="Show a certificate to Waybill">
          <Switch
            id="waybill-tls-client"
            value={jsonData.tlsAuth ?? false}
            onChange={(event) => set({ tlsAuth: event.currentTarget.checked })}
          />
        </Field>
        {jsonData.tlsAuth && (
          <>
            <Field label="Server name" htmlFor="waybill-server-name">
              <Input
                id="waybill-server-name"
                width={WIDTH}
                value={jsonData.serverName ?? ''}
                placeholder="mx1.example.com"
                onChange={(event) => set({ serverName: event.currentTarget.value })}
              />
            </Field>
            {pem('tlsClientCert', 'Certificate', 'CERTIFICATE')}
            {pem('tlsClientKey', 'Key', 'PRIVATE KEY')}
          </>
        )}
        <Field
          label="Skip verification"
          htmlFor="waybill-tls-skip"
          description={
            jsonData.tlsSkipVerify ? (
              <Text color="warning" variant="bodySmall">
                Anyone on the way can read the token and change answers.
              </Text>
            ) : (
              'Accept any certificate: for a trial only'
            )
          }
        >
          <Switch
            id="waybill-tls-skip"
            value={jsonData.tlsSkipVerify ?? false}
            onChange={(event) => set({ tlsSkipVerify: event.currentTarget.checked })}
          />
        </Field>
      </FieldSet>
    </>
  );
}
