import { defineConfig } from 'eslint/config';
import baseConfig from './.config/eslint.config.mjs';

export default defineConfig([
  {
    ignores: ['**/node_modules/', '**/coverage/', '**/dist/', 'e2e/out/', 'screens/'],
  },
  ...baseConfig,
]);
